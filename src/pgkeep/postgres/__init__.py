"""All that is known of PostgreSQL: its files, its protocol and its servers. Knows no repository."""
