"""How a decomposition lives in a layer: one file a scheme."""
