class Absent: ...


CIFAR100 = CIFAR10 = MNIST = KMNIST = FashionMNIST = ImageFolder = Absent
