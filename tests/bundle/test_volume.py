"""Where evidence may be kept: real file systems, not names of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pmforensics.bundle.volume import check_volume, read_volume
from pmforensics.errors import VolumeFull, VolumeNotPersistent, VolumeUnusable
from pmforensics.model.capture import MIB
from tests import volumes

pytestmark = pytest.mark.needs("root", "mkfs.ext4")


def test_ext4_is_persistent_and_its_numbers_are_those_of_stat(tmp_path: Path) -> None:
    with volumes.ext4(tmp_path / "volume", 128) as place:
        volume = read_volume(place / "not" / "yet" / "there")
        assert (volume.fs_type, volume.mount_point, volume.fleeting) == ("ext4", str(place), "")
        block, blocks, free = map(
            int, subprocess.run(["stat", "-f", "-c", "%S %b %a", place], capture_output=True, check=True).stdout.split()
        )
        assert (volume.total_bytes, volume.free_bytes) == (block * blocks, block * free)
        check_volume(volume, force=False)


def test_tmpfs_and_overlay_are_refused_unless_forced(tmp_path: Path) -> None:
    with volumes.tmpfs(tmp_path / "memory", 64) as memory, volumes.overlay(tmp_path / "layer") as layer:
        for place, word in ((memory, "tmpfs"), (layer, "overlay")):
            volume = read_volume(place)
            assert volume.fs_type == word
            with pytest.raises(VolumeNotPersistent, match=word) as caught:
                check_volume(volume, force=False)
            assert "--force" in caught.value.hint
            check_volume(volume, force=True)
            assert volume.json()["persistent"] is False


def test_empty_dir_of_a_pod_is_known_by_the_root_of_its_mount(tmp_path: Path) -> None:
    # A kubelet bind-mounts POD/volumes/kubernetes.io~empty-dir/NAME into the container.
    folder = tmp_path / "pods" / "0a1b" / "volumes" / "kubernetes.io~empty-dir" / "scratch"
    folder.mkdir(parents=True)
    with volumes.ext4(tmp_path / "disk", 64) as disk:
        inside = disk / "kubernetes.io~empty-dir" / "scratch"
        inside.mkdir(parents=True)
        with volumes.bind(inside, tmp_path / "evidence") as place:
            volume = read_volume(place)
            assert "emptyDir" in volume.fleeting
            with pytest.raises(VolumeNotPersistent, match="emptyDir"):
                check_volume(volume, force=False)
        claim = disk / "kubernetes.io~csi" / "claim"
        claim.mkdir(parents=True)
        with volumes.bind(claim, tmp_path / "claim") as place:
            check_volume(read_volume(place), force=False)


def test_read_only_is_refused_also_by_force(tmp_path: Path) -> None:
    with volumes.ext4(tmp_path / "volume", 64) as place:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        for force in (False, True):
            with pytest.raises(VolumeUnusable, match="read-only"):
                check_volume(read_volume(place / "new"), force=force)


def test_volume_below_its_floor_is_refused_also_by_force(tmp_path: Path) -> None:
    with volumes.ext4(tmp_path / "volume", 128) as place:
        floor_bytes = read_volume(place).floor_bytes
        assert floor_bytes == 32 * MIB
        volumes.fill(place, floor_bytes + MIB)
        check_volume(read_volume(place), force=False)
        volumes.fill(place, floor_bytes - MIB, "more")
        for force in (False, True):
            with pytest.raises(VolumeFull, match="32 MiB must stay free"):
                check_volume(read_volume(place), force=force)


def test_mount_over_a_mount_and_names_with_blanks_are_read_right(tmp_path: Path) -> None:
    with (
        volumes.ext4(tmp_path / "a disk\twith\\blanks", 64) as below,
        volumes.tmpfs(below / "on top of it", 32) as above,
    ):
        assert read_volume(below).fs_type == "ext4"
        assert read_volume(above / "x").fs_type == "tmpfs"
        assert read_volume(above).mount_point == str(above)
        link = tmp_path / "link"
        link.symlink_to(above)
        assert read_volume(link / "x").fs_type == "tmpfs"


@pytest.mark.parametrize("inside", ["file", "file/below"])
def test_file_in_place_of_the_folder_is_said(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VolumeUnusable, match="not a folder"):
        read_volume(tmp_path / inside)


def test_name_that_no_file_system_takes_is_a_volume_error(tmp_path: Path) -> None:
    with pytest.raises(VolumeUnusable):
        read_volume(tmp_path / ("x" * 300))


def test_floor_is_a_fiftieth_within_bounds() -> None:
    volume = read_volume(Path("/"))
    total = os.statvfs("/").f_blocks * os.statvfs("/").f_frsize
    assert volume.floor_bytes == min(max(total // 50, 32 * MIB), 1024 * MIB)
