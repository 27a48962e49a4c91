"""The node: commands are decided, facts recorded, effects carried out; arrays flow beside."""
