"""Export of pressed models to other formats."""
