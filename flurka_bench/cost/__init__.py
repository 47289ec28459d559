"""What ops cost on a hardware profile: seconds with bands, fitting, closed-form regions. No torch,
no clock."""
