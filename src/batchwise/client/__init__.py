"""The SDK's own client in front of a dispatcher: its tags, and a Messages call between HTTP and the ledger."""
