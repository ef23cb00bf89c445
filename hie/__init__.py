"""hie: a health information exchange with a master patient index."""

__version__ = "0.1.0"
