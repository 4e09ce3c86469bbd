"""What breaks a run, tried many times: `python -m scripts.reliability --help`; docs/reliability.md has the figures."""
