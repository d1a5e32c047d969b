"""Fast forms of decoder, aggregation and semantic map: the same functions, parameters and state-dict names.

``NetworkConfig.fast`` chooses them when a network is built. docs/decoder.md has the identities and the measurements.
"""
