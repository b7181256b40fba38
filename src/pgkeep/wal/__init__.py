"""WAL between a server and its repositories: received, pushed, fetched, and known by place and time."""
