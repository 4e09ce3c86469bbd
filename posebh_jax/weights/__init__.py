"""Weights from elsewhere: recognised (`detect`), converted (`convert`, `keys`, `mae`), used as a start (`transfer`)."""
