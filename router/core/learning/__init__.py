"""What loads have taught: observations, residuals, drift."""
