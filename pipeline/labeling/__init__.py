"""The page on which people rank responses, and the exchange of labels with other tools."""
