import gzip
import math
import struct

import numpy as np
import pytest
import scipy.io
import torch

from pyro_ar import data


@pytest.fixture(autouse=True)
def no_benchmarks(monkeypatch):
    monkeypatch.delenv("PYRO_AR_DATA", raising=False)


def idx(array, kind=0x08):
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
CELLS = [[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]]


# The embedded digits.


def test_digits():
    digits = data.digits()
    assert digits.x.shape == (1797, 64)
    assert digits.num_states == 17
    assert digits.image_shape == (8, 8)
    assert (digits.x.min(), digits.x.max()) == (0, 16)
    assert digits.y.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.load("digits").x.equal(digits.x)


def test_binary_digits():
    grey, binary = data.digits(), data.digits(binary=True)
    assert binary.num_states == 2
    assert binary.x.equal((grey.x >= 8).to(grey.x.dtype))
    assert binary.x.dtype == torch.get_default_dtype()


def test_head_and_repr():
    assert repr(data.digits().head(30)) == "Dataset(digits: 30 rows of 64 variables (8x8), 17 states, 10 classes)"
    with pytest.raises(ValueError, match="rows must be 1 or more; got 0"):
        data.digits().head(0)


@pytest.mark.parametrize(("fields", "match"), [
    ({"x": torch.zeros(3)}, "wanted rows of values"),
    ({"x": torch.zeros(0, 4)}, "wanted rows of values"),
    ({"x": torch.zeros(3, 4), "y": torch.zeros(2)}, "one label per row"),
    ({"x": torch.zeros(3, 4), "image_shape": (3, 2)}, "image shape of 4 cells"),
])
def test_datasets_are_checked(fields, match):
    with pytest.raises(ValueError, match=match):
        data.Dataset("mine", **fields)


def test_real_values_need_a_threshold():
    real = data.Dataset("mine", torch.tensor([[0.2, 0.9]]))
    assert real.binarise(0.5).x.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="threshold"):
        real.binarise()


# Files.


@pytest.mark.parametrize("kind", ["plain", "gz"])
def test_idx(tmp_path, kind):
    path = tmp_path / ("t-images-idx3-ubyte" + ".gz" * (kind == "gz"))
    path.write_bytes(gzip.compress(idx(IMAGES)) if kind == "gz" else idx(IMAGES))
    assert np.array_equal(data.load_idx(path), IMAGES)
    loaded = data.load(path)
    assert loaded.x.tolist() == IMAGES.reshape(2, 12).tolist()
    assert loaded.image_shape == (3, 4)


@pytest.mark.parametrize(("dtype", "kind"), [(">i1", 9), (">i2", 0x0B), (">i4", 0x0C), (">f4", 0x0D), (">f8", 0x0E)])
def test_idx_of_other_types(tmp_path, dtype, kind):
    values = np.array([[1, -2], [3, 4]], dtype=dtype)
    (tmp_path / "values.idx").write_bytes(idx(values, kind))
    assert data.load_idx(tmp_path / "values.idx").tolist() == values.tolist()


@pytest.mark.parametrize(("name", "content", "match"), [
    ("a.idx", idx(IMAGES)[:-1], r"a\.idx: torn IDX file, wanted 40 bytes for shape \(2, 3, 4\); got 39"),
    ("a.idx", idx(IMAGES) + b"!", "wanted 40 bytes"),
    ("a.idx", idx(IMAGES)[:9], "bytes of header"),
    ("a.idx", b"GIF89a", "wanted an IDX file, which starts with 00 00.*47 49 46 38"),
    ("a.idx", b"", "wanted an IDX file"),
    ("a.idx.gz", gzip.compress(idx(IMAGES), mtime=0)[:-9], r"a\.idx\.gz: wanted a whole gzip file, it is torn"),
    ("a.idx.gz", gzip.compress(idx(IMAGES), mtime=0)[:20], "torn"),
    ("a.idx.gz", idx(IMAGES), "wanted a gzip file, which starts with 1f 8b"),
    ("a.npz", b"PK\x03\x04 torn", r"a\.npz: wanted an \.npz file, it is torn"),
    ("a.npz", b"", "torn"),
    ("a.mat", b"no matlab file" * 40, r"a\.mat: wanted a \.mat file"),
    ("a.mat", b"MATLAB 5.0 MAT-file" + b" " * 20, r"a\.mat: wanted a \.mat file"),
    ("a.csv", b"1,2\n3\n", r"a\.csv: wanted 2 columns in line 2; got 1"),
    ("a.csv", b"a,b\n1,2\n3,x\n", "wanted numbers only; got 'x' in row 2"),
    ("a.csv", b"", "the file is empty"),
    ("a.csv", b"a,b\n", "the file is empty"),
    ("a.csv", b"\xff\xfe\x00", "wanted a text file"),
    ("a.csv", b"1,inf\n", "wanted finite numbers"),
    ("a.csv", b"?,NA\n-,\n", "wanted a column of values"),
    ("a.csv", b"a,b\n1,0\n2,x\n3,4\n", "wanted numbers only; got 'x' in row 2"),
    ("a.csv", b"1," + b"9" * 200_000 + b"\n", r"wanted a table.*from line 1 on.*field larger than field limit"),
    ("a.csv", b'1,2\n3,"' + b"5,6\n" * 50_000, "is a quotation mark missing"),
    ("a.amat", b"1 2\n3 4 5\n", "wanted 2 columns in line 2; got 3"),
    ("a.txt", b"1 2", r"wanted a file that ends in \.idx"),
])
def test_torn_files_are_named_in_one_line(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        data.load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("text", [
    "left,mid,right\n1,0,2\n0,1,1\n", "1;0;2\n0;1;1\n", "1\t0\t2\n0\t1\t1", "\ufeff1,0,2\n\n0,1,1\n", '"a";"b";"c"\n1.0;0;2\n0;1;1\n',
])
def test_csv(tmp_path, text):
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    loaded = data.load(tmp_path / "table.csv")
    assert loaded.x.tolist() == CELLS
    assert loaded.num_states == 3
    assert loaded.y is None


@pytest.mark.parametrize("label", ["right", 2, "2", -1, "-1"])
def test_labels_in_a_column(tmp_path, label):
    (tmp_path / "table.csv").write_text("left,mid,right\n1,0,2\n0,1,1\n")
    loaded = data.load(tmp_path / "table.csv", label=label)
    assert loaded.x.tolist() == [[1, 0], [0, 1]]
    assert loaded.y.tolist() == [2, 1]


def test_wrong_label_columns(tmp_path):
    (tmp_path / "table.csv").write_text("left,mid,right\n1,0,2.5\n0,1,1\n")
    with pytest.raises(ValueError, match="out of left, mid, right; got 'up'"):
        data.load(tmp_path / "table.csv", label="up")
    with pytest.raises(ValueError, match="whole numbers as labels"):
        data.load(tmp_path / "table.csv", label="right")


def test_amat(tmp_path):
    (tmp_path / "set.amat").write_text("1 0  2\n 0 1 1 \n\n")
    assert data.load(tmp_path / "set.amat").x.tolist() == CELLS
    assert data.load(tmp_path / "set.amat", label=-1).y.tolist() == [2, 1]
    (tmp_path / "set.amat.gz").write_bytes(gzip.compress(b"1 0 2\n0 1 1\n"))
    assert data.load(tmp_path / "set.amat.gz").x.tolist() == CELLS


def test_npz_and_mat(tmp_path):
    rows, labels = np.array(CELLS), np.array([5, 6])
    np.savez(tmp_path / "named.npz", x=rows, y=labels)
    np.savez(tmp_path / "single.npz", whatever=rows)
    np.savez(tmp_path / "splits.npz", train=rows, test=rows[:1], test_labels=labels[:1])
    np.savez(tmp_path / "two.npz", a=rows, b=rows)
    np.savez(tmp_path / "pickle.npz", x=np.array([{}], dtype=object))
    scipy.io.savemat(tmp_path / "named.mat", {"X": rows, "y": labels})
    for name in ("named.npz", "named.mat"):
        assert data.load(tmp_path / name).x.tolist() == CELLS
        assert data.load(tmp_path / name).y.tolist() == [5, 6]
    assert data.load(tmp_path / "single.npz").x.tolist() == CELLS
    assert data.load(tmp_path / "splits.npz", "test").y.tolist() == [5]
    with pytest.raises(ValueError, match="wanted an array called x or train, or a single one; got 'a, b'"):
        data.load(tmp_path / "two.npz")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, rows)
    with pytest.raises(ValueError, match=r"array\.npz: wanted an \.npz file.*single array"):
        data.load(tmp_path / "array.npz")
    with pytest.raises(ValueError, match=r"pickle\.npz"):
        data.load(tmp_path / "pickle.npz")


def test_real_values_have_no_states(tmp_path):
    (tmp_path / "real.csv").write_text("0.5,1\n2,3\n")
    assert data.load(tmp_path / "real.csv").num_states is None
    np.savez(tmp_path / "grey.npz", x=np.array([[[0, 200]]], dtype=np.uint8))
    assert data.load(tmp_path / "grey.npz").num_states == 256


def test_missing_files_and_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set or file called 'nope'; named sets: digits, mnist"):
        data.load("nope")
    with pytest.raises(ValueError, match="must be a file"):
        data.load(tmp_path)


# Named sets.


def test_named_sets_never_fall_back(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="PYRO_AR_DATA names, which is not set"):
        data.load("mnist")
    monkeypatch.setenv("PYRO_AR_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no .*debd/nltcs\.npz"):
        data.load("nltcs")
    with pytest.raises(ValueError, match="several sets called dna: say uci8/dna or debd/dna"):
        data.load("dna")


def test_named_sets_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_AR_DATA", str(tmp_path))
    for folder in ("mnist", "debd", "wine", "binarized_mnist"):
        (tmp_path / folder).mkdir()
    images = np.zeros((3, 28, 28), dtype=np.uint8)
    (tmp_path / "mnist/t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "mnist/t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([3, 1, 4], dtype=np.uint8))))
    np.savez(tmp_path / "debd/nltcs.npz", train=np.eye(4, dtype=np.uint8), valid=np.eye(4, dtype=np.uint8)[:2])
    (tmp_path / "wine/winequality-red.csv").write_text('"acid";"quality"\n7.4;5\n7.8;6\n')
    pixels = np.random.default_rng(0).integers(0, 2, (2, 784), dtype=np.uint8)
    np.savez(tmp_path / "binarized_mnist/binarized_mnist.npz", test_bits=np.packbits(pixels, axis=1),
             test_labels_derived=np.array([7, 2]))
    mnist = data.load("mnist", "test")
    assert (mnist.x.shape, mnist.y.tolist(), mnist.num_states, mnist.image_shape) == ((3, 784), [3, 1, 4], 256, (28, 28))
    assert data.load("nltcs", "valid").x.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert data.load("debd/nltcs").num_states == 2
    assert data.load("wine").y.tolist() == [5, 6]
    assert data.load("binarized_mnist", "test").x.tolist() == pixels.tolist()
    with pytest.raises(ValueError, match="mnist has the splits train, test; got 'valid'"):
        data.load("mnist", "valid")


def test_parts(monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_AR_DATA", str(tmp_path))
    (tmp_path / "debd").mkdir()
    np.savez(tmp_path / "debd/nltcs.npz", train=np.eye(4, dtype=np.uint8), test=np.eye(4, dtype=np.uint8)[:2])
    for name in ("nltcs", "debd/nltcs"):
        train, test = data.load_parts(name)
        assert (len(train.x), len(test.x)) == (4, 2)
    both = train.followed_by(test, "both")
    assert (both.name, both.x.tolist()) == ("both", [*np.eye(4).tolist(), *np.eye(4)[:2].tolist()])
    assert data.load_parts("digits")[1] is None
    (tmp_path / "wine").mkdir()
    (tmp_path / "wine/winequality-red.csv").write_text('"acid";"quality"\n7.4;5\n7.8;6\n')
    assert data.load_parts("wine")[1] is None
    with pytest.raises(ValueError, match="must have rows of one kind"):
        data.digits().followed_by(data.digits(binary=True), "both")


def test_words_are_categories_in_alphabetical_order(tmp_path):
    (tmp_path / "table.csv").write_text("colour,size\nred,2\nblue,0\nred,1\ngreen,2\n")
    loaded = data.load(tmp_path / "table.csv")
    assert loaded.x.tolist() == [[2, 2], [0, 0], [2, 1], [1, 2]]
    assert loaded.num_states == 3
    assert data.load(tmp_path / "table.csv", label="colour").y.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize(("text", "names"), [
    ("x,2020\n1,0\n0,1\n", ["x", "2020"]),
    ("0,1,2\n1,0,1\n0,1,1\n", ["0", "1", "2"]),
    ("0,1\n5,6\n6,5\n", ["0", "1"]),
    ("0,1\n1,0\n0,1\n", None),
    ("?,1\n1,0\n0,1\n", None),
    ("red,1\nblue,0\n", None),
    ("1,0,1\n0,1,1\n", None),
    ("?,NA\nred,0\nblue,1\n", None),
    ("x,2020\n1,0\nNA,1\n", ["x", "2020"]),
])
def test_first_line_of_a_csv(tmp_path, text, names):
    (tmp_path / "table.csv").write_text(text)
    assert data.read_csv(tmp_path / "table.csv")[0] == names


@pytest.mark.parametrize("empty", ["", "  ", "NA", "n/a", "NaN", "nan", "null", "NULL", "None", "?", "-", " NA ", "<NA>"])
def test_empty_cells_are_hidden_cells(tmp_path, empty):
    """In numbers and in words; the visible cells are what they are without the empty ones."""
    (tmp_path / "table.csv").write_text(f"colour,size,fine\nred,{empty},1\n{empty},2,0\nblue,0,1\nred,{empty},0\n")
    loaded = data.load(tmp_path / "table.csv")
    nan = math.nan
    assert torch.equal(loaded.x.nan_to_num(-1), torch.tensor([[1, nan, 1], [nan, 2, 0], [0, 0, 1], [1, nan, 0]]).nan_to_num(-1))
    assert loaded.num_states == 3
    assert torch.equal(loaded.visible, ~loaded.x.isnan())
    assert loaded.hidden_cells == "3 empty cells are hidden cells, in 2 columns: colour (1), size (2)"
    assert loaded.notes == ("first line taken for names of the columns: colour, size, fine",
                            "words became 0, 1, ... in alphabetical order: colour (blue, red)")
    assert repr(loaded).endswith("3 states, no labels, 3 cells hidden)")
    assert loaded.binarise().x[:, 1].nan_to_num(-1).tolist() == [-1, 1, 0, -1]
    bare = data.load(tmp_path / "table.csv", label="fine")
    assert bare.columns == ("colour", "size")
    with pytest.raises(ValueError, match="wanted a label in every row, 2 have none, the first is row 1"):
        data.load(tmp_path / "table.csv", label="size")


def test_whole_tables_hide_nothing(tmp_path):
    (tmp_path / "table.csv").write_text("1,0\n0,-1\n")  # a sign is no empty cell
    loaded = data.load(tmp_path / "table.csv")
    assert (loaded.visible, loaded.hidden_cells, loaded.notes, loaded.columns) == (None, "", (), ("0", "1"))
    np.savez(tmp_path / "holes.npz", x=np.array([[0.0, math.nan], [1.0, 2.0]]))
    assert data.load(tmp_path / "holes.npz").hidden_cells == "1 empty cells are hidden cells, in 1 column: 1 (1)"
    np.savez(tmp_path / "image.npz", x=np.array([[[0.0, math.nan], [1.0, 2.0]]]))
    with pytest.raises(ValueError, match="images without hidden cells"):
        data.load(tmp_path / "image.npz")


@pytest.mark.parametrize(("name", "first"), [("", 0), ("Unnamed: 0", 0), ("", 1)])
def test_row_numbers_without_a_name_are_left_out(tmp_path, name, first):
    """As pandas writes them, from 0 on, and R, from 1 on; a label may still be asked for by its number in the file."""
    lines = [f"{first + i},{i % 2},{i % 3}" for i in range(6)]
    (tmp_path / "table.csv").write_text("\n".join([f"{name},a,b", *lines]))
    loaded = data.load(tmp_path / "table.csv")
    assert loaded.columns == ("a", "b")
    assert loaded.x.tolist() == [[i % 2, i % 3] for i in range(6)]
    assert loaded.notes[1] == f"left out, its row numbers: {name or '(column 0)'}"
    assert data.load(tmp_path / "table.csv", label=1).y.tolist() == [0, 1] * 3
    with pytest.warns(UserWarning, match="left out, its row numbers"):
        assert data.load_csv(tmp_path / "table.csv")[0].shape == (6, 2)
    for other in ([f"{name},a,b", *lines[::-1]], ["id,a,b", *lines]):  # other values, or a name of its own: a variable
        (tmp_path / "other.csv").write_text("\n".join(other))
        assert data.load(tmp_path / "other.csv").x.shape == (6, 3)


def test_empty_columns_are_left_out(tmp_path):
    (tmp_path / "table.csv").write_text("a,,b\n1,,0\n0,,1\n")
    loaded = data.load(tmp_path / "table.csv")
    assert loaded.x.tolist() == [[1, 0], [0, 1]]
    assert loaded.notes[-1] == "left out, empty in all rows: (column 1)"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path, end):
    (tmp_path / "table.csv").write_bytes(end.join(["a;b", "1;2", "0;1", ""]).encode())
    assert data.load(tmp_path / "table.csv").x.tolist() == [[1, 2], [0, 1]]
    assert data.read_csv(tmp_path / "table.csv")[0] == ["a", "b"]
