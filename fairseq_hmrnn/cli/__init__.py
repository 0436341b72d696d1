"""What the commands of this package have in common: arguments, text that they read, and what ends them."""
