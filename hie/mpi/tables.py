"""Tables of `hie.mpi`."""
