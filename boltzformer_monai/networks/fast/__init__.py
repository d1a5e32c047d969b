"""Fast forms of decoder, aggregation and semantic map: same functions, parameters and state-dict names.

Enabled by ``NetworkConfig.fast``. docs/decoder.md has the identities and the measurements.
"""
