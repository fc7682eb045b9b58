"""Files for launchers, as package data: `xmodal copy NAME` gives them to the user. No code."""
