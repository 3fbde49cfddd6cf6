//! Files on this host.
