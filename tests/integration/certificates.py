"""Authorities and certificates, made with the openssl program."""
import subprocess
from pathlib import Path

_CONFIG = """
[ca]
default_ca = this
[this]
dir = {folder}
database = $dir/index.txt
new_certs_dir = $dir
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""
_NOW = ("20200101000000Z", "20990101000000Z")
EXPIRED = ("20200101000000Z", "20200102000000Z")
FUTURE = ("20900101000000Z", "20990101000000Z")


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, openssl, folder, name="authority"):
        self._openssl, self.folder = openssl, Path(folder)
        self.folder.mkdir(parents=True)
        self.certificate, self.key = self.folder / "ca.pem", self.folder / "ca.key"
        (self.folder / "index.txt").touch()
        (self.folder / "openssl.cnf").write_text(_CONFIG.format(folder=self.folder))
        self._run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                  "-subj", f"/CN={name}", "-days", "3650", "-keyout", self.key,
                  "-out", self.certificate)

    def _run(self, *words):
        subprocess.run([self._openssl, *map(str, words)], check=True, capture_output=True)

    def issue(self, name, sans, validity=_NOW):
        """(certificate, key): paths of PEM files. `sans`: as in a config, "DNS:localhost"."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, more = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        more.write_text(f"subjectAltName={sans}\nbasicConstraints=CA:FALSE\n")
        self._run("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                  "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        self._run("ca", "-batch", "-notext", "-config", self.folder / "openssl.cnf",
                  "-keyfile", self.key, "-cert", self.certificate, "-in", request,
                  "-out", certificate, "-extfile", more,
                  "-startdate", validity[0], "-enddate", validity[1])
        return certificate, key
