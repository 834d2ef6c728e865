"""From a plan to a pressed model and back."""
