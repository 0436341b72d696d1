"""Whatever uses a trained model."""
