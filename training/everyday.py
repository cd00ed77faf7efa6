"""Everyday functions written for this corpus, by this project: what a first prompt asks for.

Libraries hold few functions as plain as these. `corpus.py` reads this file like any other source
and repeats it (`REPEATED`); nothing imports it.
"""

import csv
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path


def hello_world():
    print("Hello World!")


def hello():
    print("Hello, world!")


def say_hello(name):
    print(f"Hello, {name}!")


def greet(name):
    """Return a greeting for the given name."""
    return f"Hello, {name}!"


def hello_name(name="World"):
    """Print a greeting."""
    print("Hello " + name + "!")


def goodbye(name):
    return f"Goodbye, {name}!"


def add(a, b):
    return a + b


def subtract(a, b):
    return a - b


def multiply(a, b):
    """Multiply two numbers."""
    return a * b


def divide(a, b):
    """Divide a by b."""
    if b == 0:
        raise ZeroDivisionError("division by zero")
    return a / b


def square(x):
    return x * x


def cube(x):
    return x**3


def is_even(n):
    return n % 2 == 0


def is_odd(n):
    return n % 2 == 1


def maximum(numbers):
    """Return the largest number in a list."""
    largest = numbers[0]
    for number in numbers:
        if number > largest:
            largest = number
    return largest


def minimum(values):
    smallest = values[0]
    for value in values[1:]:
        if value < smallest:
            smallest = value
    return smallest


def average(numbers):
    """Return the mean of a list of numbers."""
    if not numbers:
        return 0
    return sum(numbers) / len(numbers)


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def total(numbers):
    result = 0
    for number in numbers:
        result += number
    return result


def product(numbers):
    result = 1
    for number in numbers:
        result *= number
    return result


def factorial(n):
    """Return n factorial."""
    if n <= 1:
        return 1
    return n * factorial(n - 1)


def fibonacci(n):
    """Return the first n Fibonacci numbers."""
    numbers = []
    a, b = 0, 1
    for _ in range(n):
        numbers.append(a)
        a, b = b, a + b
    return numbers


def fib(n):
    if n < 2:
        return n
    return fib(n - 1) + fib(n - 2)


def is_prime(n):
    """Return True if n is a prime number."""
    if n < 2:
        return False
    divisor = 2
    while divisor * divisor <= n:
        if n % divisor == 0:
            return False
        divisor += 1
    return True


def gcd(a, b):
    while b:
        a, b = b, a % b
    return a


def clamp(value, low, high):
    return max(low, min(value, high))


def celsius_to_fahrenheit(celsius):
    return celsius * 9 / 5 + 32


def fahrenheit_to_celsius(fahrenheit):
    return (fahrenheit - 32) * 5 / 9


def area_of_circle(radius):
    return math.pi * radius**2


def area_of_rectangle(width, height):
    return width * height


def distance(x1, y1, x2, y2):
    """Return the distance between two points."""
    return math.sqrt((x2 - x1) ** 2 + (y2 - y1) ** 2)


def reverse_string(s):
    return s[::-1]


def reverse_words(sentence):
    return " ".join(reversed(sentence.split()))


def is_palindrome(text):
    """Return True if the text reads the same backwards."""
    text = text.lower()
    return text == text[::-1]


def count_vowels(text):
    count = 0
    for letter in text.lower():
        if letter in "aeiou":
            count += 1
    return count


def count_words(text):
    """Count the words in a text."""
    return len(text.split())


def word_frequencies(text):
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def most_common(items):
    return Counter(items).most_common(1)[0][0]


def capitalize_words(text):
    return " ".join(word.capitalize() for word in text.split())


def remove_spaces(text):
    return text.replace(" ", "")


def remove_punctuation(text):
    return re.sub(r"[^\w\s]", "", text)


def contains(items, value):
    for item in items:  # noqa: SIM110
        if item == value:
            return True
    return False


def remove_duplicates(items):
    """Return the items without duplicates, in their order."""
    seen = set()
    result = []
    for item in items:
        if item not in seen:
            seen.add(item)
            result.append(item)
    return result


def flatten(nested):
    result = []
    for item in nested:
        if isinstance(item, list):
            result.extend(flatten(item))
        else:
            result.append(item)
    return result


def chunk(items, size):
    """Split a list into chunks of the given size."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def bubble_sort(items):
    for end in range(len(items) - 1, 0, -1):
        for i in range(end):
            if items[i] > items[i + 1]:
                items[i], items[i + 1] = items[i + 1], items[i]
    return items


def quick_sort(items):
    if len(items) <= 1:
        return items
    pivot = items[0]
    smaller = [x for x in items[1:] if x < pivot]
    larger = [x for x in items[1:] if x >= pivot]
    return [*quick_sort(smaller), pivot, *quick_sort(larger)]


def binary_search(items, target):
    """Return the index of target in a sorted list, or -1."""
    low, high = 0, len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == target:
            return middle
        if items[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return -1


def linear_search(items, target):
    for index, item in enumerate(items):
        if item == target:
            return index
    return -1


def read_file(path):
    """Read a text file and return its contents."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def write_file(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [line.strip() for line in file]


def read_json(path):
    """Read a JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_json(path, data):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=4)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def list_files(path):
    """Return the names of the files in a folder."""
    return [name for name in os.listdir(path) if os.path.isfile(os.path.join(path, name))]


def file_exists(path):
    return os.path.exists(path)


def file_size(path):
    return Path(path).stat().st_size


def create_folder(path):
    os.makedirs(path, exist_ok=True)


def today():
    return date.today().isoformat()


def current_time():
    return datetime.now().strftime("%H:%M:%S")


def days_between(first, second):
    """Return the number of days between two dates."""
    return abs((second - first).days)


def tomorrow():
    return date.today() + timedelta(days=1)


def is_leap_year(year):
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def random_number(low, high):
    return random.randint(low, high)


def roll_dice():
    """Roll a die with six sides."""
    return random.randint(1, 6)


def shuffle(items):
    items = list(items)
    random.shuffle(items)
    return items


def countdown(n):
    while n > 0:
        print(n)
        n -= 1
        time.sleep(1)
    print("Done!")


def fizz_buzz(n):
    for i in range(1, n + 1):
        if i % 15 == 0:
            print("FizzBuzz")
        elif i % 3 == 0:
            print("Fizz")
        elif i % 5 == 0:
            print("Buzz")
        else:
            print(i)


def multiplication_table(n):
    for i in range(1, 11):
        print(f"{n} x {i} = {n * i}")


def print_list(items):
    for item in items:
        print(item)


def get_length(array):
    """Get the length of array."""
    return len(array)


def swap(a, b):
    return b, a


def merge_dicts(first, second):
    """Merge two dictionaries."""
    result = dict(first)
    result.update(second)
    return result


def invert_dict(mapping):
    return {value: key for key, value in mapping.items()}


def is_valid_email(email):
    return re.match(r"^[\w.+-]+@[\w-]+\.[\w.]+$", email) is not None


class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

    def is_empty(self):
        return len(self.items) == 0


class Queue:
    def __init__(self):
        self.items = []

    def enqueue(self, item):
        self.items.append(item)

    def dequeue(self):
        return self.items.pop(0)


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def distance_to(self, other):
        return math.hypot(self.x - other.x, self.y - other.y)


class Person:
    def __init__(self, name, age):
        self.name = name
        self.age = age

    def greet(self):
        print(f"Hello, my name is {self.name}.")


def main():
    name = input("What is your name? ")
    print(f"Hello, {name}!")


if __name__ == "__main__":
    sys.exit(main())
