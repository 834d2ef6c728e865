"""What a model's data say about its layers: moments of inputs, gradients at outputs, means."""
