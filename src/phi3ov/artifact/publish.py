"""Downloads exported folders from the model hub, and publishes them with a model card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PureWindowsPath

from ..errors import ExportError
from .download import download
from .folder import MANIFEST_NAME, Artifact, Manifest

_ARTIFACT_FILES = ("*.json", "*.jinja", "*.xml", "openvino_*.bin", "tokenizer.model")


def fetch_artifact(
    repo_id: str, *, revision: str | None = None, needs_chat: bool = True
) -> Artifact:
    """Download an exported folder and return it, for ``load_model(artifact.path)``.

    A folder that phi3ov exported has a manifest with checksums. Other OpenVINO exports, such as
    OpenVINO's own int4 repositories, can be read too. Their source, their recipe and later changes
    to their files are unknown, and `Artifact.manifest` says so.

    Args:
        repo_id: The hub repository.
        revision: Branch, tag or commit; None for the default branch.
        needs_chat: Whether a folder that phi3ov did not export must have a chat template; a draft
            model needs none.

    Raises:
        ExportError: The repository does not exist, is gated, or cannot be reached.
        ArtifactError: The repository holds no exported model, or files are missing.

    Example:
        >>> artifact = fetch_artifact("me/phi3-int4-ov")  # doctest: +SKIP
        >>> model = load_model(artifact.path)  # doctest: +SKIP
    """
    folder = download(repo_id, revision=revision, files=_ARTIFACT_FILES)
    return Artifact.open(folder, needs_chat=needs_chat)


def push_to_hub(
    artifact: Artifact, repo_id: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Verify an artifact, publish it with a model card, and return the commit's URL.

    Args:
        artifact: The artifact to publish.
        repo_id: The hub repository; created if it does not exist.
        private: Whether a newly created repository is private.
        revision: The branch to commit to; None for the default branch.

    Raises:
        ArtifactError: The artifact's files have changed since the export.
        ExportError: The hub refused.

    Example:
        >>> push_to_hub(Artifact.open("models/phi3-int4"), "me/phi3-int4-ov")  # doctest: +SKIP
        'https://huggingface.co/me/phi3-int4-ov/commit/...'
    """
    import huggingface_hub

    artifact.verify()
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            operations=[
                *(
                    huggingface_hub.CommitOperationAdd(name, artifact.path / name)
                    for name in artifact.manifest.files
                ),
                huggingface_hub.CommitOperationAdd(
                    MANIFEST_NAME, _public_manifest(artifact).to_json().encode()
                ),
                huggingface_hub.CommitOperationAdd(
                    "README.md", model_card(artifact, repo_id).encode()
                ),
            ],
            commit_message=f"Export of {_public_manifest(artifact).source} with phi3ov",
            revision=revision,
        )
    except Exception as error:  # as in `download`
        raise ExportError(
            f"{repo_id} could not be published to: {type(error).__name__}: {error}"
        ) from error
    return str(commit.commit_url)


def _public_manifest(artifact: Artifact) -> Manifest:
    """Return the manifest without the private path of a local checkpoint.

    Exports record the folder's name only; those of earlier versions hold the whole path.
    """
    manifest = artifact.manifest
    if manifest.commit:
        return manifest
    return replace(manifest, source=PureWindowsPath(manifest.source).name or manifest.source)


def model_card(artifact: Artifact, repo_id: str) -> str:
    """Return the text of a model card: the artifact's source and the weights that it holds."""
    manifest = _public_manifest(artifact)
    origin = manifest.source
    base_model = f"base_model: {manifest.source}\n" if manifest.commit else ""
    rows = "".join(
        f"| {kind.precision} | {kind.group_size or 'row'} | {kind.layers} | {kind.parameters:,} |\n"
        for kind in manifest.weights
    )
    tools = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return (
        f"---\nlibrary_name: phi3ov\npipeline_tag: text-generation\n{base_model}"
        "tags: [openvino, phi3ov]\n---\n\n"
        f"# {origin}, for OpenVINO\n\n"
        f"Exported with phi3ov from `{origin}`"
        f"{f', commit `{manifest.commit}`' if manifest.commit else ''}. The licence is the "
        "original model's.\n\n"
        "```python\nimport phi3ov\n\n"
        f'artifact = phi3ov.fetch_artifact("{repo_id}")\n'
        "model = phi3ov.load_model(artifact.path)\n"
        'print(phi3ov.Phi3Chat(model).generate("Hello"))\n```\n\n'
        f"Recipe: `{dict(manifest.recipe)}`. {artifact.bits_per_weight:.2f} bits per weight.\n\n"
        "| weights | values per scale | layers | parameters |\n|---|---|---|---|\n"
        f"{rows}\nMade with {tools}. `phi3ov.json` holds the SHA-256 of every file.\n"
    )
