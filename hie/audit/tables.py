"""Tables of `hie.audit`."""
