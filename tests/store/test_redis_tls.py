"""Redis over TLS and under Valkey's names, against a real server with a certificate made here."""

import datetime
import socket

import pytest
from contract import KEYS, read
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from recollect.errors import StoreError
from recollect.store import Store
from recollect.store.tiers.guarded import Denied
from recollect.store.tiers.redis import RedisTier


def make_certificate(folder, name):
    """A self-signed certificate for localhost and its key: paths of two PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    paths[0].write_bytes(certificate.public_bytes(pem))
    paths[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return paths


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def secure(redis_servers, tmp_path):
    """Port of a server that speaks TLS, and its certificate."""
    port, (certificate, key) = free_port(), make_certificate(tmp_path, "right")
    redis_servers(
        "--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "no",
        "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
        "--tls-ca-cert-file", str(certificate),
    )  # fmt: skip
    return port, certificate


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_the_right_certificate(scheme, secure):
    port, certificate = secure
    tier = RedisTier(
        f"{scheme}://localhost:{port}?ssl_ca_certs={certificate}", connect_timeout=10, timeout=10
    )
    assert tier.put(KEYS[0], b"secret")
    assert read(tier, KEYS[0]) == b"secret"
    tier.close()


def test_a_certificate_nobody_vouches_for_is_refused_in_a_line(secure, tmp_path):
    port, _ = secure
    other, _ = make_certificate(tmp_path, "wrong")
    for url in (f"rediss://localhost:{port}?ssl_ca_certs={other}", f"rediss://localhost:{port}"):
        tier = RedisTier(url, connect_timeout=10, timeout=10)
        with pytest.raises(Denied, match=r"not trusted .*ssl_ca_certs=") as caught:
            tier.contains(KEYS[0])
        assert "\n" not in str(caught.value)
        tier.close()
        with pytest.raises(StoreError, match="not trusted"):  # a wrong setting, not an outage
            Store(remote=url)


def test_a_certificate_for_another_host_is_refused(secure):
    port, certificate = secure
    tier = RedisTier(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
    with pytest.raises(Denied, match="not trusted"):
        tier.contains(KEYS[0])
    tier.close()


def test_a_file_of_certificates_that_is_not_there(secure):
    port, _ = secure
    tier = RedisTier(f"rediss://localhost:{port}?ssl_ca_certs=/nowhere/ca.pem")
    with pytest.raises(StoreError, match="localhost"):
        tier.contains(KEYS[0])
    tier.close()


def test_plain_words_to_a_server_that_wants_tls_are_a_clear_error(secure):
    port, _ = secure
    tier = RedisTier(f"redis://localhost:{port}")
    with pytest.raises(StoreError, match="localhost"):
        tier.contains(KEYS[0])
    tier.close()


def test_valkeys_name_for_an_open_port(redis_servers):
    port = free_port()
    redis_servers("--port", str(port), "--bind", "127.0.0.1")
    with Store(host=None, remote=f"valkey://127.0.0.1:{port}/1") as store:
        assert store.put(KEYS[0], b"kept")
        with store.get(KEYS[0]) as lease:
            assert (bytes(lease.data), lease.tier) == (b"kept", "redis")
