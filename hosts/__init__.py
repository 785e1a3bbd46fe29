"""From a blank machine to a Davit host: cloud-init user-data, the seed disk that carries it, systemd units."""
