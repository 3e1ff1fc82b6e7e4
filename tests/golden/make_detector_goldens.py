"""Make detectors.safetensors and detectors.json: what the families' own packages give for tiny networks.

Not part of the tests: it runs once, by hand, in an environment of its own that has `ultralytics`, `yolov5` and `yolox`
(all three are imported only; none is a dependency of posekit).
Usage: python make_detector_goldens.py [--onnx FOLDER] [--only NAME ...]
FOLDER also gets the networks as ONNX; --only makes these networks anew and keeps the others: rtdetr-l-per-class is from
an ultralytics of 2025 (8.3), rtdetr-l from one of 2026 (8.4).
"""

# mypy: ignore-errors

import argparse
import json
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

SEED = 7
INPUT_WH_PX = (96, 64)
CLASSES = 4
SCORE_THRESHOLD, IOU_THRESHOLD = 0.25, 0.45
# The first fills the input exactly; the sides of the second are rounded when it is scaled.
IMAGES_WH_PX = {"exact": (72, 48), "rounded": (131, 97)}


def images():
    """Smooth colour noise, uint8 RGB."""
    rng = np.random.default_rng(SEED)
    return {
        name: cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), wh, interpolation=cv2.INTER_CUBIC)
        for name, wh in IMAGES_WH_PX.items()
    }


def settle(network, head_convs):
    """Random weights, but activations of a trained network's size, and final convolutions that vary over the cells."""
    torch.manual_seed(SEED)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # running averages are plain means
            module.reset_running_stats()
    with torch.no_grad():
        for _ in range(4):
            network(torch.rand(4, 3, INPUT_WH_PX[1], INPUT_WH_PX[0]))
        for conv, gain, bias in head_convs:
            conv.weight.normal_(0.0, gain / conv.weight[0].numel() ** 0.5)
            conv.bias.copy_(conv.bias * 0 + bias)
    return network.eval()


def ultralytics_case(yaml):
    from ultralytics import YOLO
    from ultralytics.data.augment import LetterBox
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import scale_boxes

    torch.manual_seed(SEED)
    model = YOLO(yaml)
    eighty = model.model
    model.model = DetectionModel(eighty.yaml | {"nc": CLASSES}, nc=CLASSES, verbose=False)
    model.model.args, model.model.task = eighty.args, eighty.task
    head = model.model.model[-1]
    pairs = [(head.cv2, head.cv3)]
    if hasattr(head, "one2one_cv2"):
        pairs.append((head.one2one_cv2, head.one2one_cv3))
    finals = [(c[-1], 1.0, 1.0) for boxes, _ in pairs for c in boxes] + [
        (c[-1], 2.0, -2.0) for _, classes in pairs for c in classes
    ]
    settle(model.model, finals)
    end2end = hasattr(head, "one2one_cv2")
    if end2end:
        head.end2end = True

    def letterboxed(image):
        return LetterBox((INPUT_WH_PX[1], INPUT_WH_PX[0]), auto=False)(image=image)

    def run(pixels):
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            raw = model.model(x)
        return raw[0] if isinstance(raw, (tuple, list)) else raw

    def finish(raw, image):
        found = non_max_suppression(raw.clone(), SCORE_THRESHOLD, IOU_THRESHOLD, nc=CLASSES, end2end=end2end)[0]
        found[:, :4] = scale_boxes((INPUT_WH_PX[1], INPUT_WH_PX[0]), found[:, :4], image.shape)
        return found

    return letterboxed, run, finish, model


def rtdetr_case():
    """As RTDETRPredictor does it: the image stretched, boxes of 0 to 1 times the image's sides."""
    from ultralytics.data.augment import LetterBox
    from ultralytics.models.rtdetr import RTDETRPredictor
    from ultralytics.nn.tasks import RTDETRDetectionModel

    torch.manual_seed(SEED)
    network = RTDETRDetectionModel("rtdetr-l.yaml", nc=CLASSES, verbose=False)
    decoder = network.model[-1]
    decoder.num_queries = 100  # fewer than this input has cells
    settle(network, [])
    with torch.no_grad():  # scores that vary over queries and classes, boxes off their anchors
        torch.nn.init.normal_(decoder.dec_score_head[-1].weight, 0.0, 0.15)
        decoder.dec_score_head[-1].bias.fill_(-2.0)
        torch.nn.init.normal_(decoder.dec_bbox_head[-1].layers[-1].weight, 0.0, 0.05)
    network.names = {i: str(i) for i in range(CLASSES)}
    predictor = RTDETRPredictor(overrides={"conf": SCORE_THRESHOLD, "save": False})
    predictor.model, predictor.batch = network, [["image"]]

    def letterboxed(image):
        kind = {"scale_fill": True} if "scale_fill" in LetterBox.__init__.__code__.co_varnames else {"scaleFill": True}
        return LetterBox((INPUT_WH_PX[1], INPUT_WH_PX[0]), auto=False, **kind)(image=image)

    def run(pixels):
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            return network(x)[0]

    def finish(raw, image):
        return predictor.postprocess(raw.clone(), None, [np.ascontiguousarray(image[..., ::-1])])[0].boxes.data

    return letterboxed, run, finish, network


def yolov5_case():
    import yolov5
    from yolov5.models.yolo import DetectionModel
    from yolov5.utils.augmentations import letterbox
    from yolov5.utils.general import non_max_suppression, scale_boxes

    torch.manual_seed(SEED)
    network = DetectionModel(str(Path(yolov5.__file__).parent / "models" / "yolov5n.yaml"), nc=CLASSES)
    settle(network, [(conv, 1.5, -0.5) for conv in network.model[-1].m])

    def letterboxed(image):
        return letterbox(image, (INPUT_WH_PX[1], INPUT_WH_PX[0]), auto=False)[0]

    def run(pixels):
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            return network(x)[0]

    def finish(raw, image):
        found = non_max_suppression(raw.clone(), SCORE_THRESHOLD, IOU_THRESHOLD)[0]
        found[:, :4] = scale_boxes((INPUT_WH_PX[1], INPUT_WH_PX[0]), found[:, :4], image.shape)
        return found

    return letterboxed, run, finish, network


def yolox_case(decoded=False):
    from yolox.data.data_augment import preproc
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead
    from yolox.utils import postprocess

    torch.manual_seed(SEED)
    kind = {"in_channels": [256, 512, 1024], "act": "silu", "depthwise": True}
    head = YOLOXHead(CLASSES, 0.25, **kind)
    network = YOLOX(YOLOPAFPN(0.33, 0.25, **kind), head)
    head.decode_in_inference = decoded  # the family's own ONNX export decodes on demand alone
    finals = [(c, 1.5, 0.5) for c in [*head.obj_preds, *head.cls_preds]] + [(c, 0.5, 1.0) for c in head.reg_preds]
    settle_yolox(network, finals)
    wh = INPUT_WH_PX

    def letterboxed(image):
        pixels, _ = preproc(image[..., ::-1], (wh[1], wh[0]))  # BGR in, CHW float out
        return np.ascontiguousarray(pixels.transpose(1, 2, 0)[..., ::-1]).astype(np.uint8)

    def run(pixels):
        bgr = np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1))[None].astype(np.float32)
        with torch.no_grad():
            return network(torch.from_numpy(bgr))

    def finish(raw, image):
        rows = raw.clone() if decoded else head.decode_outputs(raw.clone(), raw.type())
        found = postprocess(rows, CLASSES, SCORE_THRESHOLD, IOU_THRESHOLD)[0]
        found[:, :4] /= min(wh[1] / image.shape[0], wh[0] / image.shape[1])
        return torch.cat([found[:, :4], found[:, 4:5] * found[:, 5:6], found[:, 6:7]], dim=1)

    return letterboxed, run, finish, network


def settle_yolox(network, finals):
    """The head wants targets when it trains: only the backbone's statistics are settled, on pixel values."""
    backbone = network.backbone

    class Pixels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def forward(self, x):
            return self.backbone(255 * x)

    settle(Pixels(), finals)
    network.eval()


# Name -> family, package, function that makes the case.
CASES = {
    "yolov5n": ("yolov5", "yolov5", yolov5_case),
    "yolov8n": ("yolov8", "ultralytics", partial(ultralytics_case, "yolov8n.yaml")),
    "yolo11n": ("yolov8", "ultralytics", partial(ultralytics_case, "yolo11n.yaml")),
    "yolov10n": ("yolo-end2end", "ultralytics", partial(ultralytics_case, "yolov10n.yaml")),
    "yolo26n": ("yolo-end2end", "ultralytics", partial(ultralytics_case, "yolo26n.yaml")),
    "yolox-nano": ("yolox", "yolox", yolox_case),
    "yolox-nano-decoded": ("yolox-decoded", "yolox", partial(yolox_case, decoded=True)),
    "rtdetr-l": ("rtdetr", "ultralytics", rtdetr_case),
    "rtdetr-l-per-class": ("rtdetr-per-class", "ultralytics", rtdetr_case),
}

FUNCTIONS = {
    "yolov5": "utils.augmentations.letterbox, utils.general.non_max_suppression and scale_boxes",
    "ultralytics": "data.augment.LetterBox, utils.nms.non_max_suppression, utils.ops.scale_boxes",
    "rtdetr": "data.augment.LetterBox with scale_fill, models.rtdetr.RTDETRPredictor.postprocess",
    "yolox": "data.data_augment.preproc, models.YOLOXHead.decode_outputs, utils.postprocess, boxes / ratio",
}


def kept(here, names):
    """Arrays and rows of these networks, as an earlier run wrote them."""
    if not names or not (here / "detectors.json").exists():
        return {}, {}
    rows = json.loads((here / "detectors.json").read_text())["networks"]
    return load_file(here / "detectors.safetensors"), {name: row for name, row in rows.items() if name in names}


def write_onnx(folder, name, model):
    example = torch.zeros(1, 3, INPUT_WH_PX[1], INPUT_WH_PX[0])
    path = folder / f"{name}.onnx"
    if hasattr(model, "export"):
        end2end = hasattr(model.model.model[-1], "one2one_cv2")
        kind = {"end2end": True} if end2end else {}  # else the export falls back on the head that needs suppression
        written = model.export(format="onnx", imgsz=(INPUT_WH_PX[1], INPUT_WH_PX[0]), simplify=False, **kind)
        Path(written).replace(path)
        return
    model = model.eval()
    if hasattr(model, "model"):
        model.model[-1].export = True  # yolov5: predictions alone
    torch.onnx.export(model, (example,), str(path), opset_version=17, dynamo=False, input_names=["images"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    here = Path(__file__).parent
    arrays, rows = kept(here, set(CASES) - set(options.only))
    for image_name, image in images().items():
        arrays[f"image/{image_name}"] = image
    for name in options.only:
        family, package, case = CASES[name]
        letterboxed, run, finish, model = case()
        how = "rtdetr" if family.startswith("rtdetr") else package
        for image_name, image in images().items():
            pixels = letterboxed(image)
            raw = run(pixels)
            found = finish(raw, image)
            arrays[f"letterboxed/{how}/{image_name}"] = pixels
            arrays[f"{name}/{image_name}/predictions"] = raw.numpy().astype(np.float32)
            arrays[f"{name}/{image_name}/found"] = found.numpy().astype(np.float32)
            print(name, image_name, tuple(raw.shape), len(found), found[:, 5].unique().tolist())
        made_by = f"{package} {version_of(package)}"
        rows[name] = {"family": family, "package": made_by, "letterbox": how, "functions": FUNCTIONS[how]}
        if options.onnx:
            options.onnx.mkdir(parents=True, exist_ok=True)
            write_onnx(options.onnx, name, model)
    rows = {name: rows[name] for name in CASES if name in rows}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, here / "detectors.safetensors")
    provenance = {
        "made_by": "python tests/golden/make_detector_goldens.py",
        "what": "found: x0 y0 x1 y1 score class by the package's own post-processing of predictions; edges, image px",
        "weights": f"random, seed {SEED}; batch-norm statistics from random images, final convolutions redrawn",
        "torchvision": "a stand-in whose ops.nms and ops.batched_nms are greedy NMS in plain torch, IoU > threshold",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "input_wh_px": INPUT_WH_PX,
        "classes": CLASSES,
        "score_threshold": SCORE_THRESHOLD,
        "iou_threshold": IOU_THRESHOLD,
        "networks": rows,
    }
    (here / "detectors.json").write_text(json.dumps(provenance, indent=1) + "\n")


def version_of(package):
    if package == "yolox":
        import yolox

        return yolox.__version__
    return version(package)


if __name__ == "__main__":
    main()
