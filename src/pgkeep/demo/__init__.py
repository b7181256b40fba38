"""The guided tour: an authentication service on a throw-away server, and a client that writes to it."""
