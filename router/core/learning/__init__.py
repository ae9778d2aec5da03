"""What past loads have taught: observations, residuals, drift."""
