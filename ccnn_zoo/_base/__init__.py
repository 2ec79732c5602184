"""What every room may need, and what needs none of them but the errors."""
