"""Everything that does something with a trained model."""
