calibrate = None
