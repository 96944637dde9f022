"""Robots behind the four methods of `robot_client.robot.Robot`."""
