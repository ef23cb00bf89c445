"""Tables of `hie.gateway`."""
