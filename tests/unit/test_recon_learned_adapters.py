"""Complete k-space of others: synthetic trees in the very layouts of fastMRI, OCMR, CMRxRecon and MRD files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.mr_recon import adapters, data, masks
from models.mr_recon.fft import fft2c, ifft2c

h5py = pytest.importorskip("h5py")
ismrmrd = pytest.importorskip("ismrmrd")

COILS, ROWS, COLUMNS = 3, 48, 40

XML = f"""<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>{2 * COLUMNS}</x><y>{ROWS}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>600</x><y>300</y><z>8</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{COLUMNS}</x><y>{ROWS}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>300</x><y>300</y><z>8</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{ROWS - 1}</maximum><center>{ROWS // 2}</center>
</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""


def images(number, seed=0):
    """(number, coil, row, column) of smooth blobs, empty beyond the field of view that is kept."""
    made = torch.zeros(number, COILS, ROWS, COLUMNS, dtype=torch.complex64)
    rng = np.random.default_rng(seed)
    for k in range(number):
        row, column = rng.integers(8, 30, 2)
        for coil in range(COILS):
            made[k, coil, row : row + 12, column : column + 8] = complex(coil + 1.0, k - 0.5)
    return made


def oversampled(image):
    """K-space with twice the columns, as scanners read it."""
    wide = torch.zeros(*image.shape[:-1], 2 * COLUMNS, dtype=image.dtype)
    wide[..., COLUMNS - COLUMNS // 2 : COLUMNS - COLUMNS // 2 + COLUMNS] = image
    return fft2c(wide)


def write_fastmri(folder, name="file1000001", patient="a", **more):
    folder.mkdir(parents=True, exist_ok=True)
    kspace = oversampled(images(2)).transpose(-1, -2).numpy()  # (slice, coil, readout, phase)
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = XML.encode()
        file["reconstruction_rss"] = np.zeros((2, 320, 320), np.float32)
        file.attrs["patient_id"] = patient
        for key, value in more.items():
            file[key] = value


def write_cmrxrecon(folder, patient="P001"):
    """(nx, ny, coil, slice, phase) in MATLAB: HDF5 has it reversed behind a header of 512 bytes."""
    file = folder / "MultiCoil" / "Cine" / "TrainingSet" / "FullSample" / patient / "cine_sax.mat"
    file.parent.mkdir(parents=True)
    kspace = fft2c(images(6)).reshape(3, 2, COILS, ROWS, COLUMNS).numpy()  # (phase, slice, coil, ny, nx)
    compound = np.zeros(kspace.shape, [("real", "<f4"), ("imag", "<f4")])
    compound["real"], compound["imag"] = kspace.real, kspace.imag
    with h5py.File(file, "w", userblock_size=512) as content:
        content["kspace_full"] = compound
    with file.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" "))


def write_ismrmrd(folder, name="fs_0001_1_5T.h5", every=1, early=0):
    folder.mkdir(parents=True, exist_ok=True)
    dataset = ismrmrd.Dataset(str(folder / name), "dataset", create_if_needed=True)
    dataset.write_xml_header(XML.encode())
    noise = ismrmrd.Acquisition.from_array(np.ones((COILS, 16), np.complex64))
    noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    dataset.append_acquisition(noise)
    kspace = oversampled(images(2)).numpy()
    for row in range(0, ROWS, every):
        for phase in range(2):
            for _ in range(2):  # two averages
                line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(kspace[phase, :, row, early:]))
                line.idx.kspace_encode_step_1, line.idx.phase = row, phase
                line.center_sample = COLUMNS - early
                dataset.append_acquisition(line)
    dataset.close()


def read_all(volume):
    return torch.stack([volume.read(k) for k in range(volume.slices)])


def test_fastmri_tree_is_read_with_phase_along_rows_and_without_oversampling(tmp_path):
    write_fastmri(tmp_path / "multicoil_train", patient="abc")
    (volume,) = adapters.find(tmp_path).volumes
    assert volume.patient == "abc"
    torch.testing.assert_close(ifft2c(read_all(volume)), images(2), atol=1e-4, rtol=1e-4)


def test_fastmri_single_coil_file_gets_its_coil_axis(tmp_path):
    with h5py.File(tmp_path / "file1.h5", "w") as file:
        file["kspace"] = fft2c(images(2)[:, 0]).transpose(-1, -2).numpy()
    (volume,) = adapters.find(tmp_path, "fastmri").volumes
    torch.testing.assert_close(ifft2c(read_all(volume)), images(2)[:, :1], atol=1e-4, rtol=1e-4)


def test_undersampled_fastmri_files_are_left_out_by_name(tmp_path):
    write_fastmri(tmp_path / "multicoil_train")
    write_fastmri(tmp_path / "multicoil_test", "file2", mask=np.ones(8, bool))
    found = adapters.find(tmp_path)
    assert len(found.volumes) == 1
    assert found.left_out == {"multicoil_test/file2.h5": "undersampled (it has a mask)"}


def test_cmrxrecon_tree_is_read_slice_by_slice_and_phase_by_phase(tmp_path):
    write_cmrxrecon(tmp_path)
    (volume,) = adapters.find(tmp_path).volumes
    assert (volume.patient, volume.slices) == ("P001", 6)
    torch.testing.assert_close(ifft2c(read_all(volume)), images(6), atol=1e-4, rtol=1e-4)


def test_ismrmrd_file_is_read_by_phase_with_its_averages(tmp_path):
    write_ismrmrd(tmp_path)
    (volume,) = adapters.find(tmp_path).volumes
    torch.testing.assert_close(ifft2c(read_all(volume)), images(2), atol=1e-4, rtol=1e-4)


def test_asymmetric_echo_keeps_its_place(tmp_path):
    write_ismrmrd(tmp_path, early=16)
    (volume,) = adapters.find(tmp_path).volumes
    whole = oversampled(images(2))
    whole[..., :16] = 0
    expected = adapters.without_oversampling(whole[0], COLUMNS)
    torch.testing.assert_close(volume.read(0), expected, atol=1e-4, rtol=1e-4)


def test_ocmr_prospective_and_other_undersampled_files_are_left_out(tmp_path):
    write_ismrmrd(tmp_path, "us_0002_1_5T.h5", every=2)
    write_ismrmrd(tmp_path, "own.mrd", every=2)
    with pytest.raises(adapters.FormatError, match="undersampled"):
        adapters.find(tmp_path)


def test_folder_without_kspace_is_an_error_that_says_what_it_saw(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["volume"] = np.zeros(3)
    with pytest.raises(adapters.FormatError, match=r"other\.h5: holds volume"):
        adapters.find(tmp_path)


def test_patients_are_parted_the_same_way_every_time():
    parts = [adapters.part_of(f"patient {k}") for k in range(300)]
    assert parts == [adapters.part_of(f"patient {k}") for k in range(300)]
    assert 0.6 < parts.count("train") / 300 < 0.8 and parts.count("test") > 20


@pytest.mark.parametrize("single", [True, False])
def test_batches_are_drawn_from_complete_kspace(tmp_path, single):
    rng = np.random.default_rng(0)
    body = rng.uniform(0.2, 1.0, (ROWS, 64)).astype(np.float32)
    full = fft2c(torch.from_numpy(body * np.exp(1j * np.linspace(0, 2, COILS))[:, None, None]).to(torch.complex64))
    volume = adapters.Volume(path=tmp_path, patient="a", slices=1, read=lambda _: full)
    pool = data.Pool([], [], volumes=(volume,), measured=1.0)
    ranges = masks.Ranges(uniform_calibration=(12, 16), variable_calibration=(8, 12))
    slabs = data.draw_slabs(pool, rng, data.Drawing(ranges=ranges), single=single, images=2, per_image=1)
    assert slabs.maps.shape == (2, data.SLAB, 1 if single else COILS, ROWS)
    assert bool(torch.isfinite(slabs.right.abs()).all()) and float(slabs.reference.abs().max()) > 0
