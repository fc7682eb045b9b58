"""What other libraries save and say, read and written: models, configurations, command lines."""
