"""Weights from elsewhere: recognised and converted (`convert`, `keys`), used as a start (`transfer`)."""
