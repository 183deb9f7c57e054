"""Who may be a member of a run: each holds a certificate of the run's own authority, made at its start and thrown away.

Nothing of it touches a disk or a command line. The authority's key is gone when the last certificate has been signed,
so nobody can join a run later, and one member can't pass for another.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orcinus.parallel.silence import ended_in_silence

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Nothing = TypeVar("Nothing", bytes, int)
# Hosts whose clocks differ by less than that still know each other. Connections are made only at the start.
_VALID = timedelta(days=1)


class Sealed(ssl.SSLSocket):
    """A connection under TLS that tells a cut link from the other side's end: the library takes both for an end."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """See `socket.recv`."""
        return super().recv(buflen, flags) or self._end(b"")

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """See `socket.recv_into`."""
        return super().recv_into(buffer, nbytes, flags) or self._end(0)

    def _end(self, nothing: Nothing) -> Nothing:
        if ended_in_silence(self):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return nothing


class Credentials(msgspec.Struct, frozen=True):
    """What one member shows to the others, as PEM. Whoever holds `key` is that member."""

    authority: str
    certificate: str
    key: str

    def __repr__(self) -> str:
        return "Credentials()"

    def to_dial(self) -> ssl.SSLContext:
        """For connections that this member makes."""
        return self._prove_with(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def to_listen(self) -> ssl.SSLContext:
        """For connections that are made to it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        # Nobody comes twice.
        context.num_tickets = 0
        return self._prove_with(context)

    def _prove_with(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.sslsocket_class = Sealed
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.authority)
        # The interface takes paths only; this file lies in the memory of this process, and has no name.
        descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, (self.certificate + self.key).encode())
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context


def name_of(member: int) -> str:
    """What a member's certificate is made out to."""
    return f"member-{member}.orcinus.invalid"


def issue(members: Collection[int]) -> dict[int, Credentials]:
    """For each member of a new run its own."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "orcinus run")])

    def signed(key: ec.EllipticCurvePrivateKey, name: str, *, is_authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        subject = issuer if is_authority else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - _VALID)
            .not_valid_after(now + _VALID)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False)
        )
        if not is_authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        return builder.sign(authority_key, hashes.SHA256())

    def pem(certificate: x509.Certificate) -> str:
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    authority = pem(signed(authority_key, "", is_authority=True))
    found: dict[int, Credentials] = {}
    for member in members:
        key = ec.generate_private_key(ec.SECP256R1())
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        found[member] = Credentials(authority, pem(signed(key, name_of(member), is_authority=False)), plain.decode())
    return found
