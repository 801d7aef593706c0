"""Many LoRAs over one basis."""
