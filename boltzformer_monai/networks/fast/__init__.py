"""Fast forms of decoder, aggregation and semantic map: same functions, parameters and state-dict names.

Enabled by ``NetworkConfig.fast``. docs/explanation/decoder.md has the identities and the measurements.
"""
