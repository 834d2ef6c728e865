"""Statistics of a model's layers on data: input moments, output gradients, means."""
