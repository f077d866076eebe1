"""Where to look next: information of a cell about the class, and cells revealed one by one."""
