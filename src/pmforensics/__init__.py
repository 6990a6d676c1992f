"""pmf: capture the evidence of a sick process before the restart, and prove what the evidence is."""

__version__ = "0.1.0"
