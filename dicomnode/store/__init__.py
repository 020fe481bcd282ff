"""The only writer of state: tables, spool folder, and the state machines' legal moves, each one transaction."""
