"""Any network of timm as a teacher, and students that we trained; imports `teachers.recording`."""
