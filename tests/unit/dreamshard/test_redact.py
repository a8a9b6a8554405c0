import pytest

from dreamshard.redact import REDACTED, is_secret, redact, redact_command

SECRET = ["token", "HF_TOKEN", "s3.secretAccessKey", "api-key", "AWS_ACCESS_KEY_ID", "db.password"]
OPEN = ["tokenizer", "image_key", "num_tokens", "monkey", "RAY_AUTH_MODE", "keys", "passes"]


@pytest.mark.parametrize("name", SECRET)
def test_secret_names(name: str) -> None:
    assert is_secret(name)
    assert redact("abc", name=name) == REDACTED


@pytest.mark.parametrize("name", OPEN)
def test_open_names(name: str) -> None:
    assert not is_secret(name)
    assert redact("abc", name=name) == "abc"


def test_values_inside_values() -> None:
    config = {
        "storage": {"token": "abc", "retries": 3, "empty_token": ""},
        "roots": ["s3://id:secret@host/data", "https://host/x?X-Amz-Signature=abc&part=1"],
        "header": "Authorization: Bearer abc.def",
    }
    assert redact(config) == {
        "storage": {"token": REDACTED, "retries": 3, "empty_token": ""},
        "roots": [
            f"s3://{REDACTED}@host/data",
            f"https://host/x?X-Amz-Signature={REDACTED}&part=1",
        ],
        "header": f"Authorization: Bearer {REDACTED}",
    }


def test_commands() -> None:
    command = ["dreamshard", "encode", "--hub.token", "abc", "--db.password=xyz", "--lr=1", "a b"]
    line = redact_command([*command, "--source.image_key=jpg", "--verbose", "url?key=abc"])
    assert "abc" not in line and "xyz" not in line
    assert line == (
        f"dreamshard encode --hub.token '{REDACTED}' '--db.password={REDACTED}' --lr=1 'a b' "
        f"--source.image_key=jpg --verbose 'url?key={REDACTED}'"
    )
