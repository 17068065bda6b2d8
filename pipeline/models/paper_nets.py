"""The paper's nets that are not in torchvision."""

from collections import OrderedDict

from torch import nn


def mlp(num_classes: int = 10) -> nn.Module:
    """The paper's MLP for MNIST: 784-500-150-10, ReLU; input (N, 1, 28, 28)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 500),
        nn.ReLU(),
        nn.Linear(500, 150),
        nn.ReLU(),
        nn.Linear(150, num_classes),
    )


def lenet(num_classes: int = 10) -> nn.Module:
    """The paper's LeNet for MNIST (Caffe's: the only ReLU follows fc1); input (N, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, num_classes),
    )


def convnet(num_classes: int = 10) -> nn.Module:
    """The paper's ConvNet for CIFAR-10: Caffe's quick net, its classifier as convolutions.

    Input (N, 3, 32, 32).
    """
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(64, 64, 4),
        nn.ReLU(),
        nn.Conv2d(64, num_classes, 1),
        nn.Flatten(),
    )


def nin(num_classes: int = 10) -> nn.Module:
    """The paper's Network in Network for CIFAR-10 (Lin et al., ICLR 2014); input (N, 3, 32, 32)."""

    def block(channels: tuple[int, ...], kernel: int) -> list[nn.Module]:
        sizes = (kernel, 1, 1)
        layers: list[nn.Module] = []
        for before, after, size in zip(channels, channels[1:], sizes, strict=False):
            layers += [nn.Conv2d(before, after, size, padding=size // 2), nn.ReLU()]
        return layers

    return nn.Sequential(
        *block((3, 192, 160, 96), 5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(0.5),
        *block((96, 192, 192, 192), 5),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Dropout(0.5),
        *block((192, 192, 192), 3),
        nn.Conv2d(192, num_classes, 1),
        nn.AvgPool2d(8),
        nn.Flatten(),
    )


def caffe_alexnet(num_classes: int = 1000) -> nn.Module:
    """Caffe's AlexNet (bvlc_alexnet): convolutions in two groups, local response normalisation.

    Input (N, 3, 227, 227), 0..255 minus the mean. Layers have Caffe's names. tools/caffe.py
    converts Caffe's weights, which are for BGR images, to RGB.
    """

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 96, 11, stride=4),
            relu1=nn.ReLU(),
            norm1=norm(),
            pool1=nn.MaxPool2d(3, 2),
            conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
            relu2=nn.ReLU(),
            norm2=norm(),
            pool2=nn.MaxPool2d(3, 2),
            conv3=nn.Conv2d(256, 384, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(3, 2),
            flatten=nn.Flatten(),
            fc6=nn.Linear(9216, 4096),
            relu6=nn.ReLU(),
            drop6=nn.Dropout(0.5),
            fc7=nn.Linear(4096, 4096),
            relu7=nn.ReLU(),
            drop7=nn.Dropout(0.5),
            fc8=nn.Linear(4096, num_classes),
        )
    )
