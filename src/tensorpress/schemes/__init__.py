"""The schemes: how each decomposition is built into a layer, one file per scheme."""
