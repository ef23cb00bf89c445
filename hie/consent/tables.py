"""Tables of `hie.consent`."""
