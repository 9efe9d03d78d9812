"""Text encoders and tokenization."""
