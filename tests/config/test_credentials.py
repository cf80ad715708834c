"""Files that systemd passes to a service: a configuration names them as ever, and what was passed is read."""

from pathlib import Path

import pytest

from tunnel.certificates import make_self_signed
from tunnel.config.credentials import as_passed, credential_name, noting
from tunnel.config.file import check_file, load_client, load_server
from tunnel.errors import ConfigError

TOKEN = "s3cret-Token_of-43-characters-0123456789abcd"
OTHER = "another-Token_of-43-characters-0123456789abc"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the configuration is."""
    found = tmp_path / "etc"
    found.mkdir()
    return found


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "credentials"
    found.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(found))
    return found


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.touch(0o600)
    path.write_text(text)
    path.chmod(mode)
    return path


def hand_over(credentials: Path, path: Path, text: str) -> Path:
    """As LoadCredential= does: the group's bit shows that an ACL names the service's user."""
    return write(credentials / credential_name(path), text, 0o440)


def client_file(folder: Path, token_file: str = "home.token") -> Path:
    return write(folder / "client.toml", f'server = "tunnel.example.com"\ntoken_file = "{token_file}"\n', 0o644)


@pytest.mark.parametrize("token_file", ["home.token", "./../etc/home.token"])
def test_a_token_that_was_passed_is_read_in_place_of_the_file_without_the_configuration_changing(
    token_file: str, folder: Path, credentials: Path
) -> None:
    path = client_file(folder, token_file)
    write(folder / "home.token", OTHER).chmod(0)  # the service's user could not read it
    hand_over(credentials, folder / "home.token", TOKEN + "\n")
    assert load_client(path).token == TOKEN
    assert check_file(path).warnings == ()


def test_a_configuration_that_was_passed_is_read_with_all_it_names_beside_where_it_stands(
    folder: Path, credentials: Path
) -> None:
    path = client_file(folder)
    hand_over(credentials, path, path.read_text())
    hand_over(credentials, folder / "home.token", TOKEN)
    path.unlink()
    assert load_client(path).token == TOKEN


def test_a_servers_pair_that_was_passed_is_used(folder: Path, credentials: Path) -> None:
    certificate, key = (made.decode() for made in make_self_signed(["localhost"]))
    path = write(folder / "server.toml", '[tls]\ncert_file = "server.crt"\nkey_file = "server.key"\n')
    write(folder / "server.crt", certificate)
    passed = hand_over(credentials, folder / "server.key", key)
    config = load_server(path)
    assert (config.cert_file, config.key_file) == (folder / "server.crt", passed)


def test_what_was_not_passed_is_read_where_it_stands(folder: Path, credentials: Path) -> None:
    path = client_file(folder)
    write(folder / "home.token", TOKEN)
    hand_over(credentials, folder / "elsewhere" / "home.token", OTHER)
    assert load_client(path).token == TOKEN


@pytest.mark.parametrize("variable", ["", "credentials", "/nonexistent"])
def test_without_a_folder_of_credentials_files_are_read_where_they_stand(
    variable: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", variable)
    write(folder / "home.token", TOKEN)
    assert load_client(client_file(folder)).token == TOKEN


def test_a_passed_token_is_held_to_the_same_rules(folder: Path, credentials: Path) -> None:
    hand_over(credentials, folder / "home.token", "\n").chmod(0o444)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 0444\)"):
        load_client(client_file(folder))
    (credentials / credential_name(folder / "home.token")).chmod(0o400)
    with pytest.raises(ConfigError, match="holds no token"):
        load_client(client_file(folder))


def test_each_file_has_a_name_of_its_own_that_systemd_takes() -> None:
    paths = [Path("/etc/a/token"), Path("/etc/b/token"), Path("/etc/a:b/ü %n.pem"), Path("/etc/.hidden"), Path("/x/.")]
    names = [credential_name(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert [name.rpartition("-")[0] for name in names] == ["token", "token", "___n.pem", "hidden", "x"]
    assert all(len(credential_name(Path("/", letter * 250))) < 120 for letter in "aü")


def test_what_a_configuration_names_can_be_learnt(folder: Path) -> None:
    path = client_file(folder, "sub/../home.token")
    with noting() as noted:
        check_file(path)
    assert list(noted) == [path, folder / "home.token"]
    as_passed(folder / "later")
    assert len(noted) == 2
