"""Maps of tissue parameters from files: `reconstream fit`."""
